import { useEffect, useState } from "react";

import { client, data, type Schemas } from "../../../api/client";
import { isAbort } from "../../../api/http";
import { messageOf } from "../../../api/useFetched";
import type { Values } from "../../../parts/values";
import type { Prediction } from "./types";

const WAIT_MS = 1500;

export interface Planned {
  /** The last plan. It stays while the next one is made. */
  plan: Prediction | null;
  problem: Schemas["Mistake"] | null;
  /** Whether what is shown is that of an older recipe. */
  isOld: boolean;
  /** Since when it is being planned, in ms; null if it is not. */
  since: number | null;
}

const NOTHING: Planned = { plan: null, problem: null, isOld: false, since: null };

/** Plans a recipe once it has not changed for a while; a change ends the planning under way. Null plans nothing. */
export function usePlan(values: Values | null, machine: string): Planned {
  const [planned, setPlanned] = useState(NOTHING);
  const key = values && JSON.stringify([values, machine]);

  useEffect(() => {
    if (!values) {
      setPlanned((old) => ({ ...old, isOld: true, since: null }));
      return;
    }
    const left = new AbortController();
    setPlanned((old) => ({ ...old, isOld: true }));
    const timer = setTimeout(() => {
      setPlanned((old) => ({ ...old, since: Date.now() }));
      const body = { values, machine: machine.trim() || null };
      data(client.POST("/api/recipe/plan", { body, signal: left.signal })).then(
        ({ plan, problem }) =>
          !left.signal.aborted && setPlanned({ plan: plan as Prediction | null, problem, isOld: false, since: null }),
        (error) => {
          if (left.signal.aborted || isAbort(error)) return;
          setPlanned({ ...NOTHING, problem: { key: "", message: messageOf(error) } });
        },
      );
    }, WAIT_MS);
    return () => {
      clearTimeout(timer);
      left.abort();
    };
    // The key says when the values differ.
  }, [key]);

  return planned;
}
