import type { ModelRow } from "../../api/client";

/** Groups of models that a server can be asked for, in the order of the choice. */
export const GROUPS: { title: string; kinds: ModelRow["kind"][] }[] = [
  { title: "Results of runs", kinds: ["result"] },
  { title: "Exports", kinds: ["export"] },
  { title: "Bases", kinds: ["hub", "folder"] },
  { title: "GGUF files", kinds: ["gguf"] },
];

/** How a server is asked for a model: a run by its id, all others by their path. */
export function servedAs({ kind, run, path }: ModelRow): string {
  return kind === "result" && run ? run : path;
}

/** An export that is not the trained model has this ending. */
const FAILED = ".failed";

export function canBeServed({ kind, path, is_complete }: ModelRow): boolean {
  return is_complete && !path.endsWith(FAILED) && GROUPS.some(({ kinds }) => kinds.includes(kind));
}
