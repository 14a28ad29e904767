import type { RunView } from "../../api/client";
import { CopyButton } from "../../parts/CopyButton";
import { href } from "../router";

export function RecipeTab({ view }: { view: RunView }) {
  return (
    <div className="stack">
      <section>
        <header className="panel-title">
          <h2>recipe.yaml</h2>
          <span>
            <CopyButton text={view.recipe_yaml} label="Copy the recipe" />
            <a className="button small" href={href(["new"], { from: view.row.id })}>
              Use again
            </a>
          </span>
        </header>
        <pre className="listing" tabIndex={0} role="region" aria-label="Recipe">
          {view.recipe_yaml}
        </pre>
      </section>
      <section>
        <h2>In the terminal</h2>
        <ul className="commands">
          {Object.entries(view.commands).map(([name, command]) => (
            <li key={name}>
              <code>{command}</code>
              <CopyButton text={command} label={`Copy the command for ${name}`} />
            </li>
          ))}
        </ul>
      </section>
    </div>
  );
}
