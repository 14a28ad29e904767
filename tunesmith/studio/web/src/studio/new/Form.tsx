import { useState } from "react";

import type { Schemas } from "../../api/client";
import { Segments } from "../../parts/Segments";
import { Button } from "../../parts/Button";
import { Prose } from "../../parts/Prose";
import type { Level } from "../../parts/schema";
import { FieldRow } from "./FieldRow";
import type { Draft, DraftState, Problem } from "./draft";
import { isShown, type Field, type Section, sectionsOf } from "./fields";
import { RecipeValues } from "./recipeValues";
import { valueAt } from "./values";

const OPTIONS: { value: Level; text: string }[] = [
  { value: "essential", text: "Essential" },
  { value: "more", text: "More" },
  { value: "all", text: "All" },
];

interface Props {
  schema: Schemas["RecipeSchema"];
  draft: Draft;
  state: DraftState;
  level: Level;
  onLevel: (level: Level) => void;
}

/** The recipe as a form. A field that is set or wrong is shown at every level. */
export function Form({ schema, draft, state, level, onLevel }: Props) {
  const [search, setSearch] = useState("");
  const problems = problemsByKey(state);
  const sections = sectionsOf(schema, state.values);
  const words = search.trim().toLowerCase();
  const isWanted = (field: Field) =>
    words
      ? `${field.key} ${field.title} ${field.help}`.toLowerCase().includes(words)
      : isShown(field, level) || problems.has(field.key) || valueAt(state.values, field.key) !== undefined;
  return (
    <div className="recipe-form" role="form" aria-label="Recipe">
      <div className="form-head">
        <Segments label="Fields that are shown" options={OPTIONS} value={level} onChange={onLevel} />
        <input
          type="search"
          aria-label="Search fields"
          placeholder="Search fields"
          value={search}
          onChange={(event) => setSearch(event.target.value)}
        />
      </div>
      <RecipeValues value={state.values}>
        {sections.map((section) => (
          <SectionPart
            key={section.key}
            section={section}
            fields={section.fields.filter(isWanted)}
            onMore={words || level === "all" ? null : () => onLevel("all")}
            draft={draft}
            state={state}
            problems={problems}
          />
        ))}
      </RecipeValues>
    </div>
  );
}

interface PartProps {
  section: Section;
  fields: Field[];
  onMore: (() => void) | null;
  draft: Draft;
  state: DraftState;
  problems: Map<string, string>;
}

function SectionPart({ section, fields, onMore, draft, state, problems }: PartProps) {
  if (!fields.length) return null;
  const hidden = section.fields.length - fields.length;
  const title = `section-${section.key || "run"}`;
  return (
    <section aria-labelledby={title} className="form-section">
      <header>
        <h2 id={title}>{section.title}</h2>
        {section.help && (
          <p className="note">
            <Prose text={section.help} />
          </p>
        )}
      </header>
      <div className="fields">
        {fields.map((field) => (
          <FieldRow
            key={field.key}
            field={field}
            value={valueAt(state.values, field.key)}
            problem={problems.get(field.key) ?? ""}
            onChange={(value) => draft.setValue(field.key, value)}
          />
        ))}
      </div>
      {onMore && hidden > 0 && (
        <Button small look="quiet" onClick={onMore}>
          {hidden} more
        </Button>
      )}
    </section>
  );
}

/** What is wrong with each field. Problems inside of a list are those of the list; what is only missing in a recipe that
 *  nobody has begun is no problem yet. */
export function problemsByKey(state: DraftState): Map<string, string> {
  const found = new Map<string, string>();
  if (state.editedAt === null && !state.yaml.trim()) return found;
  for (const { key, message } of state.problems) {
    const field = key.replace(/\.\d+.*$/, "");
    found.set(field, found.has(field) ? `${found.get(field)}; ${message}` : message);
  }
  return found;
}

/** The problems that no field can show. */
export function otherProblems(state: DraftState, schema: Schemas["RecipeSchema"]): Problem[] {
  const known = new Set(schema.sections.flatMap(({ keys }) => keys));
  return state.problems.filter(({ key }) => !known.has(key.replace(/\.\d+.*$/, "")));
}
