import { View } from "../shell/View";

export function Home() {
  return <View title="Home">{null}</View>;
}
