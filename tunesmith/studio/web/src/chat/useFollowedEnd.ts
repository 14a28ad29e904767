import { type RefObject, useEffect, useLayoutEffect, useRef } from "react";

const NEAR = 80; // pixels

/** Keeps the end of a scrolled element in sight while `content` grows, unless the reader has scrolled away from it.
 * Returns a function that goes to the end. */
export function useFollowedEnd(pane: RefObject<HTMLElement | null>, content: unknown): () => void {
  const follows = useRef(true);

  useEffect(() => {
    const element = pane.current!;
    const scrolled = () => {
      follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
    };
    element.addEventListener("scroll", scrolled, { passive: true });
    return () => element.removeEventListener("scroll", scrolled);
  }, [pane]);

  const toEnd = () => pane.current!.scrollTo({ top: pane.current!.scrollHeight });

  useLayoutEffect(() => {
    if (follows.current) toEnd();
  }, [content]);

  return () => {
    follows.current = true;
    toEnd();
  };
}
