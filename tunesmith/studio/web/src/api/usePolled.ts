import { useEffect } from "react";

import { type Fetched, useFetched } from "./useFetched";

/** Fetches data again and again while the page is seen. `wait` gives the milliseconds until the next time. */
export function usePolled<Data>(
  key: string | null,
  fetcher: (signal: AbortSignal) => Promise<Data>,
  wait: (data: Data | null) => number,
): Fetched<Data> {
  const fetched = useFetched(key, fetcher);
  const { data, busy, reload } = fetched;

  useEffect(() => {
    if (busy || key === null) return;
    let timer = 0;
    const again = () => {
      clearTimeout(timer);
      if (!document.hidden) timer = window.setTimeout(reload, wait(data));
    };
    const seen = () => (document.hidden ? clearTimeout(timer) : reload());
    again();
    document.addEventListener("visibilitychange", seen);
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
    // The wait is a new function with each rendering.
  }, [busy, data, key, reload]);

  return fetched;
}
