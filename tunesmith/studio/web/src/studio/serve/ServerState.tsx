import type { Server } from "../../api/client";
import { Badge, type Tone } from "../../parts/Badge";

const TONES: Record<string, Tone> = { ready: "good", loading: "accent", stopping: "warning", failed: "bad" };

export function ServerState({ server }: { server: Server }) {
  return <Badge tone={TONES[server.state] ?? "plain"}>{server.state}</Badge>;
}
