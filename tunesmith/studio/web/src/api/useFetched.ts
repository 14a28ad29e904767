import { useCallback, useEffect, useRef, useState } from "react";

import { ApiError, isAbort } from "./http";
import { connection } from "./live";
import { useValue } from "./value";

export interface Fetched<Data> {
  /** What came last. It stays while it is fetched again. */
  data: Data | null;
  error: string;
  /** Whether something is on the way. */
  busy: boolean;
  reload: () => void;
  /** Replaces the data, for answers of a change. */
  set: (data: Data) => void;
}

interface Options {
  /** What takes long and does not change by itself is fetched again only if it failed when the studio returns. */
  lasts?: boolean;
}

/** Fetches data, again whenever `key` changes, the studio returns, or `reload` is called. A null key fetches nothing. */
export function useFetched<Data>(
  key: string | null,
  fetcher: (signal: AbortSignal) => Promise<Data>,
  { lasts = false }: Options = {},
): Fetched<Data> {
  const online = useValue(connection);
  const fetchedAt = useRef(online);
  const [asked, setAsked] = useState(0);
  const [state, setState] = useState<{ key: string | null; data: Data | null; error: string; busy: boolean }>({
    key,
    data: null,
    error: "",
    busy: true,
  });

  if (!lasts || state.error) fetchedAt.current = online;
  useEffect(() => {
    if (key === null) return;
    const left = new AbortController();
    setState((old) => ({ ...old, busy: true }));
    fetcher(left.signal).then(
      (data) => !left.signal.aborted && setState({ key, data, error: "", busy: false }),
      (error) => {
        if (left.signal.aborted || isAbort(error)) return;
        setState((old) => ({ ...old, key, error: messageOf(error), busy: false }));
      },
    );
    return () => left.abort();
    // The fetcher is a new function with each rendering; the key says when it gives something else.
  }, [key, fetchedAt.current, asked]);

  const reload = useCallback(() => setAsked((times) => times + 1), []);
  const set = useCallback((data: Data) => setState((old) => ({ ...old, data, error: "", busy: false })), []);
  return { data: state.data, error: state.error, busy: state.busy, reload, set };
}

export function messageOf(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  return error instanceof Error ? `The page failed: ${error.message}` : "The page failed.";
}
