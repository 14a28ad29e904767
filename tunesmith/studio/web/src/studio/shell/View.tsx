import { type ReactNode, useEffect } from "react";

import { pageTitle } from "./documentTitle";
import { refocusTitle } from "./titleFocus";

interface Props {
  title: string;
  /** Beside the title. */
  aside?: ReactNode;
  /** Above the title: where this view belongs. */
  above?: ReactNode;
  children: ReactNode;
}

/** A view: its title, which is read and focused on navigation, and its content. */
export function View({ title, aside, above, children }: Props) {
  useEffect(() => pageTitle.set(title), [title]);
  useEffect(refocusTitle, []);

  return (
    <>
      {above && (
        <nav className="above" aria-label="Back">
          {above}
        </nav>
      )}
      <header className="view-title">
        <h1 id="title" tabIndex={-1}>
          {title}
        </h1>
        {aside && <div className="aside">{aside}</div>}
      </header>
      {children}
    </>
  );
}
