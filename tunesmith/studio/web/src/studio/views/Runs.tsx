import { View } from "../shell/View";

export function Runs() {
  return <View title="Runs">{null}</View>;
}
