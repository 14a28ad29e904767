import { type RefObject, useEffect, useState } from "react";

const STEP = 200;

/** The width of an element in pixels, rounded up, so that not every pixel of a resize asks the server again. */
export function useWidth(element: RefObject<HTMLElement | null>): number {
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const own = element.current;
    if (!own) return;
    const sizes = new ResizeObserver(() => setWidth(Math.min(4000, Math.ceil(own.clientWidth / STEP) * STEP)));
    sizes.observe(own);
    return () => sizes.disconnect();
  }, [element]);
  return width;
}
