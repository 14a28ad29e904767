import { Pending } from "../shell/Pending";

export function Models() {
  return <Pending title="Models" text="The runs whose results can be used are listed by" command="tunesmith runs" />;
}
