import type { ModelRow } from "../../api/client";
import { Button } from "../../parts/Button";
import { Scroller } from "../../parts/Scroller";
import { href } from "../router";
import { canBeServed, servedAs } from "../serve/servable";
import { SortHead } from "../SortHead";
import type { Sort } from "../sorting";
import { COLUMNS } from "./columns";

const BASES: ModelRow["kind"][] = ["hub", "folder", "gguf", "result"];

interface Props {
  models: ModelRow[];
  sort: Sort;
  onDelete: (row: ModelRow) => void;
}

export function ModelsTable({ models, sort, onDelete }: Props) {
  return (
    <Scroller label="Models">
      <table className="table models-table">
        <thead>
          <tr>
            <SortHead columns={COLUMNS} sort={sort} />
            <th scope="col">
              <span className="unseen">Actions</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {models.map((row) => (
            <tr key={row.id}>
              {COLUMNS.map(({ key, title, cell, value, number }) => (
                <td
                  key={key}
                  data-title={title}
                  className={[number && "number", value(row) === null && "unknown"].filter(Boolean).join(" ")}
                >
                  {cell(row)}
                </td>
              ))}
              <td className="row">
                {canBeServed(row) && (
                  <a
                    className="button small"
                    href={href(["chat"], row.served ? { ...row.served } : { serve: servedAs(row) })}
                  >
                    Chat
                  </a>
                )}
                {row.is_complete && BASES.includes(row.kind) && (
                  <a className="button small" href={href(["new"], { model: row.path })}>
                    Train
                  </a>
                )}
                <Button look="quiet" small aria-label={`Delete ${row.name}`} onClick={() => onDelete(row)}>
                  Delete
                </Button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Scroller>
  );
}
