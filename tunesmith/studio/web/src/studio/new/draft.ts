// A recipe that is being written: as values for the form and as YAML, of which either may be edited.

import { client, data, type Schemas } from "../../api/client";
import { isAbort } from "../../api/http";
import { messageOf } from "../../api/useFetched";
import { Value } from "../../api/value";
import type { Values } from "../../parts/values";
import { withValue } from "./values";

export type Problem = Schemas["Mistake"];

export interface DraftState {
  /** Those that could last be read. */
  values: Values;
  yaml: string;
  problems: Problem[];
  command: string;
  /** Whether the problems and the command are not yet those of what is shown. */
  isChecking: boolean;
  /** Whether `values` are what `yaml` says. */
  isReadable: boolean;
  /** The YAML as the user wrote it, if a change in the form took comments out of it. */
  withComments: string | null;
  /** When the last edit was made that was not saved, in ms; null if there is none. */
  editedAt: number | null;
  /** Whether this is an edit from before a reload. */
  isRestored: boolean;
  /** Why the recipe could not be checked. */
  error: string;
}

const WAIT_MS = { form: 200, text: 450 };
/** The YAML of a recipe without values. */
const EMPTY = "{}\n";
const HAS_COMMENT = /(^|\s)#/m;

interface Kept {
  yaml: string;
  values: Values | null;
  at: number;
}

export class Draft {
  readonly state: Value<DraftState>;
  /** The version of the file that this recipe was last read from or saved in, which a later save may replace. */
  version = "";
  private timer = 0;
  private asked = new AbortController();

  /** `origin`: what the recipe was filled from. Each has a draft of its own in this browser. */
  constructor(private readonly origin: string) {
    const kept = this.kept();
    this.state = new Value<DraftState>({
      values: kept?.values ?? {},
      yaml: kept?.yaml ?? "",
      problems: [],
      command: "",
      isChecking: true,
      isReadable: true,
      withComments: null,
      editedAt: kept?.at ?? null,
      isRestored: kept !== null,
      error: "",
    });
  }

  /** Begins with what this browser kept, else with a recipe that `source` gives. */
  async begin(source: () => Promise<string | null>): Promise<void> {
    const kept = this.kept();
    if (kept)
      await this.check(kept.values || kept.yaml.trim() ? { yaml: kept.yaml, values: kept.values } : { values: {} });
    else await this.beginWith(source);
  }

  /** Begins again without the edits. */
  async beginWith(source: () => Promise<string | null>): Promise<void> {
    this.forget();
    try {
      const yaml = await source();
      this.change({ yaml: yaml ?? "", values: {}, isRestored: false, editedAt: null, withComments: null });
      await this.check(yaml === null ? { values: {} } : { yaml });
    } catch (error) {
      if (!isAbort(error)) this.change({ error: messageOf(error), isChecking: false });
    }
  }

  /** Changes one value; undefined takes it out. */
  setValue(key: string, value: unknown): void {
    this.setValues(withValue(this.state.get().values, key, value));
  }

  setValues(values: Values): void {
    const { yaml, isReadable, withComments } = this.state.get();
    const lost = isReadable && HAS_COMMENT.test(yaml) ? yaml : withComments;
    this.edited({ values, withComments: lost, isReadable: true }, values);
    this.later({ values, yaml }, WAIT_MS.form);
  }

  setText(yaml: string): void {
    this.edited({ yaml, withComments: null }, null);
    this.later(yaml.trim() ? { yaml } : { values: {} }, WAIT_MS.text);
  }

  /** Takes what is here as saved, so that a reload brings nothing back. */
  saved(version = this.version): void {
    this.version = version;
    this.forget();
    this.change({ editedAt: null, isRestored: false });
  }

  /** Ends what is under way. */
  leave(): void {
    clearTimeout(this.timer);
    this.asked.abort();
  }

  /** `values`: those that the YAML does not say yet. */
  private edited(changes: Partial<DraftState>, values: Values | null): void {
    const at = Date.now();
    this.change({ ...changes, editedAt: at, isRestored: false, isChecking: true });
    this.keep({ yaml: this.state.get().yaml, values, at });
  }

  private later(draft: Partial<Schemas["Draft"]>, wait: number): void {
    clearTimeout(this.timer);
    this.asked.abort();
    this.timer = window.setTimeout(() => void this.check(draft), wait);
  }

  private async check(draft: Partial<Schemas["Draft"]>): Promise<void> {
    this.asked.abort();
    const { signal } = (this.asked = new AbortController());
    this.change({ isChecking: true });
    try {
      const found = await data(
        client.POST("/api/recipe/check", { body: { yaml: null, values: null, ...draft }, signal }),
      );
      if (signal.aborted) return;
      const { problems, command, values } = found;
      const now = { problems, command, isChecking: false, error: "" };
      const text = found.yaml === EMPTY ? "" : found.yaml;
      if (draft.values)
        this.change({ ...now, values: draft.values, yaml: text, isReadable: true, withComments: this.stillLost(text) });
      else this.change({ ...now, isReadable: values !== null, ...(values !== null && { values }) });
      const { editedAt, yaml } = this.state.get();
      if (editedAt !== null) this.keep({ yaml, values: null, at: editedAt });
    } catch (error) {
      if (!isAbort(error)) this.change({ isChecking: false, error: messageOf(error) });
    }
  }

  /** The older text, unless the new one has its comments still. */
  private stillLost(yaml: string): string | null {
    const { withComments } = this.state.get();
    return withComments !== null && !HAS_COMMENT.test(yaml) ? withComments : null;
  }

  private change(changes: Partial<DraftState>): void {
    this.state.set({ ...this.state.get(), ...changes });
  }

  private get place(): string {
    return `tunesmith.draft:${this.origin}`;
  }

  private kept(): Kept | null {
    try {
      return JSON.parse(localStorage.getItem(this.place) ?? "null") as Kept | null;
    } catch {
      return null;
    }
  }

  private keep(kept: Kept): void {
    try {
      localStorage.setItem(this.place, JSON.stringify(kept));
    } catch {
      // The browser keeps nothing: the edits then last until the page is closed.
    }
  }

  private forget(): void {
    try {
      localStorage.removeItem(this.place);
    } catch {
      // Nothing was kept.
    }
  }
}
