let isWanted = false;

/** Focuses the title of a view, so that a screen reader reads where the user is. */
export function focusTitle(): void {
  isWanted = true;
  document.getElementById("title")?.focus({ preventScroll: true });
}

/** Focuses the title again where a view replaced it, as views do that first load something. */
export function refocusTitle(): void {
  if (isWanted && document.activeElement === document.body) focusTitle();
}
