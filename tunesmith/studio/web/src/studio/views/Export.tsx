import { Pending } from "../shell/Pending";

export function Export() {
  return <Pending title="Export & serve" text="A run is exported by" command="tunesmith export RUN gguf" />;
}
