import type { Server } from "../../api/client";
import { Empty } from "../../parts/Empty";
import { ServerState } from "../serve/ServerState";
import { StartServer } from "../serve/StartServer";
import { pathNames } from "../serve/useServers";

interface Props {
  servers: Server[];
  /** What is chosen at first, as `servedAs` names it. */
  first: string | null;
  onStarted: (server: Server) => void;
}

/** Stands where no model can be asked: what loads, why it failed, and how to start one. */
export function ServerNeeded({ servers, first, onStarted }: Props) {
  const isLoading = servers.some(({ state }) => state === "loading");
  return (
    <div className="server-needed">
      <Empty title={isLoading ? "The model is loading" : "No model is running"}>
        <p>
          {isLoading
            ? "The conversation can begin as soon as it is ready."
            : "A conversation needs a server: it loads runs and models, and answers until it is stopped."}
        </p>
      </Empty>
      {servers.map((server) => (
        <div key={server.id} className="server-line">
          <ServerState server={server} /> <b>{pathNames(server)}</b>
          {server.detail && <p className={server.state === "failed" ? "note bad" : "note"}>{server.detail}</p>}
        </div>
      ))}
      {!isLoading && <StartServer first={first} onStarted={onStarted} />}
    </div>
  );
}
