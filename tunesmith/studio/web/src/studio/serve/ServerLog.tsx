import { client, data, type Server } from "../../api/client";
import { Dialog } from "../../parts/Dialog";
import { FollowedLog } from "../shell/FollowedLog";
import { pathNames } from "./useServers";

/** What a server writes, to the end and on. */
export function ServerLog({ server, onClose }: { server: Server; onClose: () => void }) {
  const read = (offset?: number) =>
    data(client.GET("/api/servers/{name}/log", { params: { path: { name: server.id }, query: { offset } } }));
  const title = `Log of ${pathNames(server)}`;
  return (
    <Dialog title={title} open onClose={onClose} place="side">
      <FollowedLog key={server.id} label={title} isGrowing={server.state !== "failed"} read={read} />
    </Dialog>
  );
}
