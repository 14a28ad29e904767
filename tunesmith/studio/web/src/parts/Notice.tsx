import type { ReactNode } from "react";

import type { Tone } from "./Badge";

interface Props {
  id?: string;
  tone?: Exclude<Tone, "accent">;
  children: ReactNode;
}

/** Something the user must see. A screen reader reads a bad one at once. */
export function Notice({ id, tone = "plain", children }: Props) {
  return (
    <p id={id} className={`notice ${tone}`} role={tone === "bad" ? "alert" : "status"}>
      {children}
    </p>
  );
}
