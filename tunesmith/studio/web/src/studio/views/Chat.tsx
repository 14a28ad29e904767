import { Pending } from "../shell/Pending";

export function Chat() {
  return <Pending title="Chat" text="A run or a model is talked to by" command="tunesmith serve RUN" />;
}
