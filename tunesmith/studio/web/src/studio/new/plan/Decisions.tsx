import { Button } from "../../../parts/Button";
import { bytes, decimal, integer } from "../../numbers";
import type { Alternative, Prediction } from "./types";

/** Decisions in the order in which people ask for them, with the words for their values. */
const DECISIONS: [key: string, title: string][] = [
  ["device", "Device"],
  ["processes", "Processes"],
  ["compute", "Computes in"],
  ["weights", "Weights in"],
  ["sequence_length", "Sequence length"],
  ["micro_batch_tokens", "Tokens a pass"],
  ["gradient_checkpointing", "Recomputation"],
  ["kept_layers", "Layers kept on the GPU"],
  ["shares", "Shares of the tokens"],
  ["packing", "Packing"],
  ["tiled_mlp", "Tiled MLP"],
  ["activation_offload", "Activation offload"],
  ["compile", "Compile"],
];

/** What was decided, and why. */
export function Decisions({ plan }: { plan: Prediction["plan"] }) {
  const shown = DECISIONS.filter(([key]) => plan[key] !== null && plan[key] !== undefined);
  return (
    <details className="decisions">
      <summary>What was decided, and why</summary>
      <dl>
        {shown.map(([key, title]) => (
          <div key={key}>
            <dt>{title}</dt>
            <dd>{textOf(plan[key])}</dd>
            {plan.reasons[key] && <dd className="note">{plan.reasons[key]}</dd>}
          </div>
        ))}
      </dl>
    </details>
  );
}

function textOf(value: unknown): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (typeof value === "number") return integer(value);
  return Array.isArray(value) ? value.map(textOf).join(", ") : String(value);
}

interface OthersProps {
  title: string;
  others: Alternative[];
  /** Changes the recipe so; without it, the others are no recipes. */
  onApply?: (change: string) => void;
}

/** Other plans for the recipe, or other recipes that would fit. */
export function Others({ title, others, onApply }: OthersProps) {
  if (!others.length) return null;
  return (
    <section aria-label={title}>
      <h3>{title}</h3>
      <ul className="others">
        {others.map((other) => (
          <li key={other.change}>
            <b>{other.change}</b>
            <span className="note">{effect(other)}</span>
            {onApply && (
              <Button small aria-label={`Use ${other.change}`} onClick={() => onApply(other.change)}>
                Use
              </Button>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

function effect({ tokens_per_second, needed_bytes, quality }: Alternative): string {
  const speed = tokens_per_second === null ? null : `${decimal(Math.round(tokens_per_second), 3)} tokens/s`;
  return [speed, needed_bytes === null ? null : bytes(needed_bytes), quality].filter(Boolean).join(" · ");
}
