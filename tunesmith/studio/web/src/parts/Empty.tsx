import type { ReactNode } from "react";

/** Stands where there is nothing to show yet, and says how something gets there. */
export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}
