import { Pending } from "../shell/Pending";

export function Data() {
  return <Pending title="Data" text="Rows as the model will see them are shown by" command="tunesmith data show FILE --model MODEL" />;
}
