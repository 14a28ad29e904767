import { useState } from "react";

import { client, data, type Server } from "../../api/client";
import { answered, servers } from "../../api/live";
import { Badge } from "../../parts/Badge";
import { Button } from "../../parts/Button";
import { Confirm } from "../../parts/Confirm";
import { CopyButton } from "../../parts/CopyButton";
import { integer, moment } from "../numbers";
import { href } from "../router";
import { tried } from "../toasts";
import { Connect } from "./Connect";
import { ServerLog } from "./ServerLog";
import { ServerState } from "./ServerState";
import { pathNames } from "./useServers";

/** A server: what it has, where it is reached, and what can be done with it. */
export function ServerCard({ server }: { server: Server }) {
  const [opened, setOpened] = useState<"stop" | "now" | "log" | "connect" | null>(null);
  const { id, state, models, url, detail } = server;
  const close = () => setOpened(null);
  const stop = (now: boolean) =>
    void tried(() => {
      const params = { path: { name: id } };
      return answered(servers, () => data(client.POST("/api/servers/{name}/stop", { params, body: { now } })));
    });

  return (
    <li className="server">
      <div className="server-head">
        <h3>{pathNames(server)}</h3>
        <ServerState server={server} />
        <div className="row">
          {server.usable && (
            <a className="button small" href={href(["chat"], { server: id })}>
              Chat
            </a>
          )}
          {server.usable && (
            <Button small onClick={() => setOpened("connect")}>
              Connect
            </Button>
          )}
          {server.has_log && (
            <Button small onClick={() => setOpened("log")}>
              Log
            </Button>
          )}
          {state === "failed" && (
            <Button small onClick={() => stop(false)}>
              Remove
            </Button>
          )}
          {(state === "loading" || state === "ready") && (
            <Button small onClick={() => setOpened("stop")}>
              Stop
            </Button>
          )}
          {state === "stopping" && (
            <Button small onClick={() => setOpened("now")}>
              Stop now
            </Button>
          )}
        </div>
      </div>
      {detail && <p className={state === "failed" ? "note bad" : "note"}>{detail}</p>}
      {models.length > 0 && (
        <ul className="served" aria-label="Models">
          {models.map(({ name, kind, context }) => (
            <li key={name}>
              <Badge tone={kind === "tuned" ? "accent" : "plain"}>{kind}</Badge> {name}{" "}
              <span className="note">{integer(context)} tokens</span>
            </li>
          ))}
        </ul>
      )}
      <p className="note facts">
        {url && (
          <span>
            <code>{url}/v1</code> <CopyButton text={`${url}/v1`} label="Copy the address" />
          </span>
        )}
        <span>{facts(server)}</span>
      </p>
      {state === "ready" && !server.usable && (
        <p className="note">
          The studio cannot ask it: it listens elsewhere, or needs a key that the studio does not know.
        </p>
      )}
      <Confirm
        title={`Stop ${pathNames(server)}?`}
        text={
          state === "loading"
            ? "It has not loaded yet, so it ends at once."
            : "It takes no further requests, finishes the answers in progress, and ends."
        }
        verb="Stop"
        open={opened === "stop"}
        onConfirm={() => stop(false)}
        onClose={close}
      />
      <Confirm
        title={`Stop ${pathNames(server)} now?`}
        text="Answers in progress are cut off."
        verb="Stop now"
        open={opened === "now"}
        onConfirm={() => stop(true)}
        onClose={close}
      />
      {opened === "log" && <ServerLog server={server} onClose={close} />}
      {opened === "connect" && <Connect server={server} onClose={close} />}
    </li>
  );
}

function facts({ needs_key, devices, since, pid }: Server): string {
  const known = [needs_key && "needs a key", devices.join(", "), `since ${moment(since)}`, `process ${pid}`];
  return known.filter(Boolean).join(" · ");
}
