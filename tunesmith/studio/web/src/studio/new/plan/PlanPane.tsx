import { useEffect, useState } from "react";

import { Badge } from "../../../parts/Badge";
import { Button } from "../../../parts/Button";
import { Prose } from "../../../parts/Prose";
import { bytes, plural } from "../../numbers";
import { Decisions, Others } from "./Decisions";
import { Figures } from "./Figures";
import { MemoryBars } from "./MemoryBars";
import type { Prediction } from "./types";
import type { Planned } from "./usePlan";

interface Props {
  planned: Planned;
  /** Why there is nothing to plan yet; empty if there is. */
  missing: string;
  machine: string;
  onMachine: (machine: string) => void;
  /** Shows the field of a problem. */
  onProblem: (key: string) => void;
  /** Changes the recipe as a remedy says. */
  onRemedy: (change: string) => void;
}

/** What the recipe needs on this machine, or on another. */
export function PlanPane({ planned, missing, machine, onMachine, onProblem, onRemedy }: Props) {
  const { plan, problem, isOld } = planned;
  return (
    <section className="pane plan-pane" aria-labelledby="plan-title" aria-busy={planned.since !== null}>
      <header>
        <h2 id="plan-title">Plan</h2>
        <Verdict planned={planned} />
        <Since since={planned.since} />
      </header>
      <div className={`plan-body ${isOld && !missing ? "old" : ""}`}>
        {missing ? (
          <p className="note">{missing}</p>
        ) : (
          <>
            {plan?.refusal && (
              <p className="refusal">
                <Prose text={plan.refusal} />
              </p>
            )}
            {problem && (
              <p className="refusal">
                <Prose text={problem.message} />{" "}
                {problem.key && (
                  <Button small look="quiet" onClick={() => onProblem(problem.key)}>
                    Show the field
                  </Button>
                )}
              </p>
            )}
            {plan && <Content found={plan} onRemedy={onRemedy} />}
            {!plan && !problem && <p className="note">The first plan takes about ten seconds, the next ones a few.</p>}
          </>
        )}
      </div>
      <details className="machine-choice" open={machine !== "" || undefined}>
        <summary>Plan for another machine</summary>
        <input
          aria-label="Machine"
          placeholder="2x3090+4090,host=64GB"
          spellCheck={false}
          defaultValue={machine}
          onBlur={(event) => onMachine(event.target.value)}
          onKeyDown={(event) => event.key === "Enter" && onMachine(event.currentTarget.value)}
        />
      </details>
    </section>
  );
}

function Content({ found, onRemedy }: { found: Prediction; onRemedy: Props["onRemedy"] }) {
  return (
    <>
      <Figures found={found} />
      {found.needs ? (
        <MemoryBars needs={found.needs} hostBytes={found.host_bytes} />
      ) : (
        <p className="note">The memory is not predicted: {found.not_predicted}</p>
      )}
      <Others title="It would fit with" others={found.remedies} onApply={onRemedy} />
      {Object.entries(found.left_out).map(([name, why]) => (
        <p key={name} className="note">
          {name} is left out: {why}
        </p>
      ))}
      {found.disk && <DiskLine disk={found.disk} />}
      <Others title="Other plans" others={found.alternatives} />
      <Decisions plan={found.plan} />
    </>
  );
}

function DiskLine({ disk }: { disk: NonNullable<Prediction["disk"]> }) {
  return (
    <p className={disk.fits === false ? "over" : "note"}>
      Disk: {bytes(disk.left_bytes)} for {plural(disk.checkpoints, "checkpoint")} and the result
      {disk.needed_bytes > disk.left_bytes && <>, {bytes(disk.needed_bytes)} at most</>}
      {disk.free_bytes !== null && <>; {bytes(disk.free_bytes)} free</>}
    </p>
  );
}

function Verdict({ planned: { plan, problem, isOld } }: { planned: Planned }) {
  if (isOld && (plan || problem)) return <Badge>of the recipe before</Badge>;
  if (problem) return <Badge tone="bad">{plan ? "no room on the disk" : "no plan"}</Badge>;
  if (!plan) return null;
  if (plan.fits === null) return <Badge>memory not predicted</Badge>;
  return plan.fits ? <Badge tone="good">fits</Badge> : <Badge tone="bad">does not fit</Badge>;
}

/** Says that it is being planned, and for how long. */
function Since({ since }: { since: number | null }) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (since === null) return;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [since]);
  if (since === null) return null;
  const seconds = Math.max(0, Math.round((now - since) / 1000));
  return (
    <span className="planning">
      <span role="status">planning…</span>
      {seconds > 1 && <span className="note"> {seconds} s</span>}
    </span>
  );
}
