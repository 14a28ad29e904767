import { client, data, type Download } from "../../api/client";
import { answered, downloads } from "../../api/live";
import { Badge, type Tone } from "../../parts/Badge";
import { Button } from "../../parts/Button";
import { bytes, percent } from "../numbers";
import { tried } from "../toasts";

const TONES: Record<Download["state"], Tone> = { running: "accent", done: "good", failed: "bad", stopped: "warning" };

/** Shows the downloads after a change, without waiting until the studio tells it. */
export function lookAtDownloads(): Promise<void> {
  return answered(downloads, () => data(client.GET("/api/models/downloads")));
}

/** Downloads: those on the way, and how the others ended. */
export function Downloads({ shown }: { shown: Download[] }) {
  const does = (action: () => Promise<unknown>) => void tried(() => action().then(lookAtDownloads));
  return (
    <ul className="servers downloads" aria-label="Downloads">
      {shown.map((one) => {
        const params = { path: { id: one.id } };
        const { model, revision, file } = one;
        return (
          <li key={one.id} className="server">
            <div className="server-head">
              <h2>{[model, revision, file].filter(Boolean).join(" · ")}</h2>
              <Badge tone={TONES[one.state]}>{one.state}</Badge>
              <div className="row">
                {one.state === "running" ? (
                  <Button
                    small
                    onClick={() => does(() => data(client.POST("/api/models/downloads/{id}/stop", { params })))}
                  >
                    Stop
                  </Button>
                ) : (
                  <>
                    {one.state !== "done" && (
                      <Button
                        small
                        onClick={() =>
                          does(() => data(client.POST("/api/models/download", { body: { model, revision, file } })))
                        }
                      >
                        Continue
                      </Button>
                    )}
                    <Button
                      look="quiet"
                      small
                      onClick={() => does(() => data(client.DELETE("/api/models/downloads/{id}", { params })))}
                    >
                      Remove from the list
                    </Button>
                  </>
                )}
              </div>
            </div>
            {one.state === "running" && <Progress download={one} />}
            {one.error && <p className="note bad">{one.error}</p>}
          </li>
        );
      })}
    </ul>
  );
}

function Progress({ download: { model, done_bytes: done, total_bytes: total } }: { download: Download }) {
  const share = total ? Math.min(1, done / total) : 0;
  const text = total ? `${bytes(done)} of ${bytes(total)}, ${percent(share)}` : "asking the hub";
  return (
    <div className="progress">
      <div
        className="bar"
        role="progressbar"
        aria-label={`Download of ${model}`}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(100 * share)}
        aria-valuetext={text}
      >
        <span style={{ width: `${100 * share}%` }} />
      </div>
      <p className="note">{text}</p>
    </div>
  );
}
