import { client, data, type RunRow } from "../../api/client";

export const getRuns = (signal?: AbortSignal): Promise<RunRow[]> => data(client.GET("/api/runs", { signal }));

export function newestFirst(runs: RunRow[]): RunRow[] {
  return [...runs].sort((a, b) => (b.started ?? "9").localeCompare(a.started ?? "9"));
}
