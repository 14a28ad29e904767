import { Pending } from "../shell/Pending";

export function NewRun() {
  return <Pending title="New run" text="A recipe is planned and queued by" command="tunesmith queue add recipe.yaml" />;
}
