import type { ReactNode } from "react";

export type Tone = "plain" | "accent" | "good" | "warning" | "bad";

/** A word about the state or the kind of something. */
export function Badge({ tone = "plain", children }: { tone?: Tone; children: ReactNode }) {
  return <span className={`badge ${tone}`}>{children}</span>;
}
