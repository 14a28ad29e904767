import { CopyButton } from "../../parts/CopyButton";
import { Empty } from "../../parts/Empty";
import { View } from "./View";

/** Stands for a view that is not there yet, and says what does the same in a terminal. */
export function Pending({ title, text, command }: { title: string; text: string; command: string }) {
  return (
    <View title={title}>
      <Empty title="Not in the studio yet">
        <p>{text} a command in the terminal:</p>
        <p>
          <code>{command}</code> <CopyButton text={command} label="Copy the command" />
        </p>
      </Empty>
    </View>
  );
}
