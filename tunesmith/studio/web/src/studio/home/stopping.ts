// The two stages in which a training is stopped, in words.

export interface Question {
  title: string;
  text: string;
  verb: string;
}

export function savesFirst(name: string): Question {
  return {
    title: `Stop ${name}?`,
    text: "It finishes its step, saves a checkpoint and ends. Nothing is lost, and it can be resumed exactly where it stopped.",
    verb: "Save and stop",
  };
}

export function savesNothing(name: string): Question {
  return {
    title: `End ${name} without saving?`,
    text: "The steps since its last checkpoint are lost. Everything before that stays, and the run can be resumed.",
    verb: "End without saving",
  };
}
