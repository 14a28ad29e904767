import type { RunRow } from "../../api/client";
import { decimal } from "../numbers";

/** Held-out loss before and after, or how far the run is. */
export function Change({ run }: { run: RunRow }) {
  const { loss_before: before, loss_after: after } = run;
  if (run.error) return <span className="note bad">{run.error}</span>;
  if (before == null || after == null) return <span className="note">no held-out loss</span>;
  return (
    <span className="note">
      held-out loss {decimal(before)} → <b>{decimal(after)}</b>
    </span>
  );
}
