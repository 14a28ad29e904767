import type { RunView } from "../../api/client";
import { integer } from "../numbers";

const TONES: Record<string, string> = { better: "good", worse: "bad", unclear: "plain" };

/** What came out, in words; then how the run ended and what went wrong on the way. */
export function Verdict({ view }: { view: RunView }) {
  const { verdict, tone, ending, energy, warnings, row } = view;
  return (
    <section className={`verdict ${TONES[tone] ?? "plain"}`} aria-label="Verdict">
      <p className="verdict-text">{verdict}</p>
      {!row.held && <p className="note">{ending}</p>}
      {row.error && <p className="note bad">{row.error}</p>}
      {energy && <p className="note">Energy: {energy}</p>}
      {Object.entries(warnings).map(([text, times]) => (
        <p key={text} className="note warning">
          Warning{times > 1 && ` (${integer(times)} times)`}: {text}
        </p>
      ))}
    </section>
  );
}
