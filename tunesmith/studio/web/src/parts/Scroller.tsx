import type { ReactNode } from "react";

/** Lets wide content scroll in its own frame, also by keyboard. */
export function Scroller({ label, children }: { label: string; children: ReactNode }) {
  return (
    <div className="scroller" tabIndex={0} role="group" aria-label={label}>
      {children}
    </div>
  );
}
