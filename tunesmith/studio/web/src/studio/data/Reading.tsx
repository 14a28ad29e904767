import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import type { useReport } from "./useReport";

interface Props {
  report: ReturnType<typeof useReport>;
  /** The paths of the sources. */
  paths: string[];
}

/** Why there is no report: it is being read, it cannot be, or a dataset would have to be downloaded first. */
export function Reading({ report: { data, error, busy, download }, paths }: Props) {
  const names = paths.filter((path) => path.startsWith("hub:")).map((path) => path.replace("hub:", ""));
  return (
    <>
      {error && <Notice tone="bad">{error}</Notice>}
      {error && names.length > 0 && (
        <div className="row from-hub">
          <Button disabled={busy} onClick={download}>
            Read from the hub
          </Button>
          <span className="note">Downloads the data files of {names.join(" and ")} into the hub’s cache.</span>
        </div>
      )}
      {busy && (!data || error) && (
        <p className="note" role="status">
          Reading {paths.join(", ")}…
        </p>
      )}
    </>
  );
}
