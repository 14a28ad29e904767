import { client, data, type Server } from "../../api/client";
import { answered, servers } from "../../api/live";
import { useValue } from "../../api/value";

/** The servers of this machine; null until the studio has said them. */
export function useServers(): Server[] | null {
  return useValue(servers);
}

/** Shows the servers after a change, without waiting until the studio tells it. */
export function lookAtServers(): Promise<void> {
  return answered(servers, () => data(client.GET("/api/servers")));
}

/** Short names of what a server was asked to serve. */
export function pathNames({ id, paths, models }: Server): string {
  const asked = paths.map((path) => path.split("/").filter(Boolean).pop());
  return (asked.length ? asked : models.map(({ name }) => name)).join(", ") || id;
}
