import { useCallback, useEffect, useRef, useState } from "react";

import { type Axis, client, type Curves, data, type RunEvents } from "../../api/client";
import { followRun } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { appended, undoesSteps } from "./append";

export interface CurvesAsked {
  x: Axis;
  pixels: number;
  low: number | null;
  high: number | null;
  smoothing: number;
}

export function getCurves(run: string, asked: CurvesAsked, signal?: AbortSignal): Promise<Curves> {
  const { low, high, ...rest } = asked;
  const query = { ...rest, ...(low !== null && { low }), ...(high !== null && { high }) };
  return data(client.GET("/api/runs/{name}/curves", { params: { path: { name: run }, query }, signal }));
}

/** The curves of a run, thinned by the server for this range and width. New steps are added as they are written. */
export function useCurves(run: string, asked: CurvesAsked): { curves: Curves | null; error: string } {
  const {
    data: fetched,
    error,
    reload,
  } = useFetched(`${run} ${JSON.stringify(asked)}`, (signal) => getCurves(run, asked, signal));
  const [curves, setCurves] = useState<Curves | null>(null);
  const now = useRef<Curves | null>(null);
  const added = useRef(0);
  const follows = asked.low === null && asked.high === null;

  const show = useCallback((next: Curves | null) => {
    now.current = next;
    setCurves(next);
  }, []);

  useEffect(() => {
    added.current = 0;
    show(fetched);
  }, [fetched, show]);

  useEffect(() => {
    if (!follows) return;
    let left = false;
    let isCatchingUp = false;
    const add = (events: RunEvents) => {
      const before = now.current;
      if (left || !before || events.next <= before.offset) return;
      added.current += events.events.length;
      const isTooMuch = added.current > 2 * asked.pixels;
      if (events.offset < before.offset || isTooMuch || undoesSteps(events.events)) return reload();
      show(appended(before, events, asked.smoothing));
    };
    const receive = async (events: RunEvents) => {
      const before = now.current;
      if (!before || isCatchingUp) return;
      if (events.offset <= before.offset) return add(events);
      isCatchingUp = true;
      try {
        const params = { path: { name: run }, query: { since: before.offset } };
        add(await data(client.GET("/api/runs/{name}/events", { params })));
      } catch {
        // The next event tries again.
      } finally {
        isCatchingUp = false;
      }
    };
    const end = followRun(run, (events) => void receive(events));
    return () => {
      left = true;
      end();
    };
  }, [run, follows, asked.pixels, asked.smoothing, reload, show]);

  return { curves, error };
}
