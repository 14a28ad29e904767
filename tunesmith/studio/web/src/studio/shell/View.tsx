import { type ReactNode, useEffect } from "react";

import { pageTitle } from "./documentTitle";

interface Props {
  title: string;
  /** Beside the title. */
  aside?: ReactNode;
  /** Above the title: where this view belongs. */
  above?: ReactNode;
  children: ReactNode;
}

let hasNavigated = false;

/** Focuses the title of the view, so that a screen reader says where the user is. */
export function focusTitle(): void {
  hasNavigated = true;
  document.getElementById("title")?.focus({ preventScroll: true });
}

/** A view: its title, which is read and focused on navigation, and its content. */
export function View({ title, aside, above, children }: Props) {
  useEffect(() => pageTitle.set(title), [title]);
  useEffect(() => {
    // A view that shows another title once it has loaded takes the focus with it.
    if (hasNavigated && document.activeElement === document.body) focusTitle();
  }, []);

  return (
    <>
      {above && <nav className="above" aria-label="Back">{above}</nav>}
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
