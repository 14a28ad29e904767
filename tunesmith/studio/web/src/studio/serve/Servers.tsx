import { useState } from "react";

import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { tried } from "../toasts";
import { ServerCard } from "./ServerCard";
import { StartServer } from "./StartServer";
import { lookAtServers, useServers } from "./useServers";

/** The servers of this machine, also those that a terminal started. */
export function Servers({ run }: { run: string | null }) {
  const servers = useServers();
  const [starts, setStarts] = useState(false);
  return (
    <section aria-label="Servers">
      <div className="section-head">
        <h2>Servers</h2>
        <Button onClick={() => setStarts(true)}>Start a server</Button>
      </div>
      {servers?.length === 0 && (
        <p className="note">
          None is running. A server answers on this machine’s own address, with the APIs of OpenAI and Anthropic.
        </p>
      )}
      <ul className="servers">
        {servers?.map((server) => (
          <ServerCard key={server.id} server={server} />
        ))}
      </ul>
      <Dialog title="Start a server" place="side" open={starts} onClose={() => setStarts(false)}>
        <StartServer
          first={run}
          onStarted={() => {
            setStarts(false);
            void tried(lookAtServers);
          }}
        />
      </Dialog>
    </section>
  );
}
