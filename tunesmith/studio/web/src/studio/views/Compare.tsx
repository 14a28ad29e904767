import { View } from "../shell/View";

export function Compare() {
  return <View title="Compare">{null}</View>;
}
