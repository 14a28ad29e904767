import { client, data, type Server } from "../../api/client";
import type { Fetched } from "../../api/useFetched";
import { usePolled } from "../../api/usePolled";

const CHANGING_MS = 700;
const STEADY_MS = 4000;

/** The servers of this machine. Those that load or stop are looked at more often. */
export function useServers(): Fetched<Server[]> {
  return usePolled(
    "servers",
    (signal) => data(client.GET("/api/servers", { signal })),
    (servers) => (servers?.some(({ state }) => state === "loading" || state === "stopping") ? CHANGING_MS : STEADY_MS),
  );
}

/** Short names of what a server was asked to serve. */
export function pathNames({ id, paths, models }: Server): string {
  const asked = paths.map((path) => path.split("/").filter(Boolean).pop());
  return (asked.length ? asked : models.map(({ name }) => name)).join(", ") || id;
}
