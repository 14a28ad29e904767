// The curves of one run, from the server and then from the stream.

import { type Axis, client, type Curves, data, type RunEvents } from "../../api/client";
import { followRun } from "../../api/live";
import { messageOf } from "../../api/useFetched";
import { appended, undoesSteps } from "./append";

export interface CurvesAsked {
  x: Axis;
  pixels: number;
  low: number | null;
  high: number | null;
  smoothing: number;
}

/** Shows the curves of a run, thinned by the server for a range and a width. New steps are added as they are written,
 * unless only a range is wanted. Returns the function that ends that. */
export function followCurves(
  run: string,
  asked: CurvesAsked,
  show: (curves: Curves) => void,
  fail: (message: string) => void,
): () => void {
  const left = new AbortController();
  let now: Curves | null = null;
  let added = 0;
  let told = 0; // how far the stream is
  let isReading = false;

  function set(next: Curves) {
    now = next;
    show(next);
  }

  /** Reads something of the server, one at a time. Null if that failed, or nobody waits for it any longer. */
  async function read<T>(reading: () => Promise<T>): Promise<T | null> {
    if (isReading) return null;
    isReading = true;
    try {
      return await reading();
    } catch (error) {
      if (!left.signal.aborted) fail(messageOf(error));
      return null;
    } finally {
      isReading = false;
    }
  }

  async function readAll() {
    const found = await read(() => getCurves(run, asked, left.signal));
    if (!found) return;
    added = 0;
    set(found);
    if (found.offset < told) await catchUp(found.offset);
  }

  /** Adds what the stream said while something was read, or before this began to listen. */
  async function catchUp(since: number) {
    const params = { path: { name: run }, query: { since } };
    const found = await read(() => data(client.GET("/api/runs/{name}/events", { params, signal: left.signal })));
    if (found) add(found);
  }

  function add(events: RunEvents) {
    if (!now || events.next <= now.offset) return;
    added += events.events.length;
    const isTooMuch = added > 2 * asked.pixels;
    if (events.offset < now.offset || isTooMuch || undoesSteps(events.events)) void readAll();
    else set(appended(now, events, asked.smoothing));
  }

  void readAll();
  const isWhole = asked.low === null && asked.high === null;
  const end = isWhole
    ? followRun(run, (events) => {
        told = events.next;
        if (!now || isReading) return;
        if (events.offset <= now.offset) add(events);
        else void catchUp(now.offset);
      })
    : null;
  return () => {
    end?.();
    left.abort();
  };
}

function getCurves(run: string, asked: CurvesAsked, signal: AbortSignal): Promise<Curves> {
  const { low, high, ...rest } = asked;
  const query = { ...rest, ...(low !== null && { low }), ...(high !== null && { high }) };
  return data(client.GET("/api/runs/{name}/curves", { params: { path: { name: run }, query }, signal }));
}
