import { useState } from "react";

import type { JobView } from "../../api/client";
import { Button } from "../../parts/Button";
import { Confirm } from "../../parts/Confirm";
import { askJob } from "./jobs";
import { WAITING } from "./JobState";
import { type Question, savesFirst, savesNothing } from "./stopping";

interface Words extends Question {
  button: string;
  now: boolean;
}

/** Ends a job in two stages: the first saves a checkpoint, the second, offered while that is under way, does not. */
export function Cancel({ job }: { job: JobView }) {
  const [asks, setAsks] = useState(false);
  const words = wordsFor(job);
  return (
    <>
      <Button look="quiet" small onClick={() => setAsks(true)}>
        {words.button}
      </Button>
      <Confirm
        title={words.title}
        text={words.text}
        verb={words.verb}
        open={asks}
        onClose={() => setAsks(false)}
        onConfirm={() => askJob(job.id, "cancel", { now: words.now })}
      />
    </>
  );
}

function wordsFor({ name, kind, state }: JobView): Words {
  if (WAITING.includes(state)) {
    return {
      button: "Cancel",
      title: `Take ${name} out of the queue?`,
      text: "If it has not begun, its run folder is removed too. If it has, its checkpoints stay and it can be resumed.",
      verb: "Take it out",
      now: false,
    };
  }
  if (kind !== "train") {
    return {
      button: "End",
      title: `End ${name}?`,
      text: `The ${kind} ends at once. What it has not finished is lost; it can be started again.`,
      verb: "End it",
      now: true,
    };
  }
  if (state === "stopping") return { button: "End now", now: true, ...savesNothing(name) };
  return { button: "Stop", now: false, ...savesFirst(name) };
}
