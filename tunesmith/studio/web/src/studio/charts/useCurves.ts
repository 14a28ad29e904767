import { useEffect, useState } from "react";

import type { Curves } from "../../api/client";
import { connection } from "../../api/live";
import { useValue } from "../../api/value";
import { type CurvesAsked, followCurves } from "./followCurves";

interface Found {
  /** In the order of the runs; null until all were read. */
  curves: Curves[] | null;
  error: string;
}

/** The curves of runs. New steps are added as they are written. While others are read, those from before stay. */
export function useCurves(runs: string[], asked: CurvesAsked): Found {
  const online = useValue(connection);
  const ids = runs.join();
  const [{ of, curves, error }, set] = useState<Found & { of: string }>({ of: ids, curves: null, error: "" });

  useEffect(() => {
    const found: (Curves | null)[] = runs.map(() => null);
    const ends = runs.map((run, at) =>
      followCurves(
        run,
        asked,
        (next) => {
          found[at] = next;
          const all = found.filter((one) => one !== null);
          if (all.length === runs.length) set({ of: ids, curves: all, error: "" });
        },
        (message) => set((old) => ({ ...old, error: message })),
      ),
    );
    return () => ends.forEach((end) => end());
  }, [ids, JSON.stringify(asked), online]);

  return { curves: of === ids ? curves : null, error };
}
