import type { Schemas } from "../../api/client";
import { decimal, duration, integer, percent } from "../numbers";

export function ProgressBar({ progress, label }: { progress: Schemas["Progress"]; label: string }) {
  const share = progress.steps ? progress.step / progress.steps : 0;
  return (
    <div className="progress">
      <div
        className="bar"
        role="progressbar"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(100 * share)}
        aria-valuetext={progress.doing || `step ${progress.step} of ${progress.steps ?? "?"}`}
      >
        <span style={{ width: `${100 * share}%` }} />
      </div>
      <p className="note">{progressText(progress)}</p>
    </div>
  );
}

function progressText({ doing, step, steps, seconds_left: left, loss, tokens_per_second: speed }: Schemas["Progress"]) {
  if (!step) return doing || "starting";
  const found = [
    steps ? `${percent(step / steps)}, step ${integer(step)} of ${integer(steps)}` : `step ${integer(step)}`,
  ];
  if (doing) found.push(doing);
  else if (left !== null) found.push(`${duration(left)} left`);
  found.push(`loss ${decimal(loss)}`);
  if (speed !== null) found.push(`${decimal(speed, 3)} tokens/s`);
  return found.join(" · ");
}
