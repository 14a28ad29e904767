import { useId } from "react";

interface Props {
  label: string;
  used: number;
  total: number;
  /** The amount in words. */
  text: string;
  aside?: string;
}

const NEARLY_FULL = 0.92;

/** A bar that shows how much of something is in use. */
export function Meter({ label, used, total, text, aside }: Props) {
  const id = useId();
  const share = total > 0 ? Math.min(1, Math.max(0, used / total)) : 0;
  return (
    <div className="meter">
      <div className="meter-label">
        <span id={id}>{label}</span>
        <span className="note">
          {aside && `${aside} · `}
          {text}
        </span>
      </div>
      <div
        className="bar"
        role="meter"
        aria-labelledby={id}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(100 * share)}
        aria-valuetext={text}
      >
        <span className={share > NEARLY_FULL ? "full" : ""} style={{ width: `${100 * share}%` }} />
      </div>
    </div>
  );
}
