import { View } from "../shell/View";

export function Run({ id }: { id: string }) {
  return <View title={id}>{null}</View>;
}
