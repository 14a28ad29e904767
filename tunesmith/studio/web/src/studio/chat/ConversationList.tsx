import { client, data, type Schemas } from "../../api/client";
import { conversationsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { moment } from "../numbers";
import { href } from "../router";

export type ConversationRow = Schemas["ConversationRow"];

/** Shows a change at once, without waiting until the studio tells it. */
export const noteChange = () => conversationsChanged.set(conversationsChanged.get() + 1);

export function titleOf({ title }: { title: string }): string {
  return title || "New conversation";
}

interface Props {
  /** The id of the one that is open. */
  open: string | null;
  search: string;
  onSearch: (text: string) => void;
  onRename: (row: ConversationRow) => void;
  onDelete: (row: ConversationRow) => void;
  /** Called when one is chosen. */
  onChosen?: () => void;
}

/** The conversations, the last changed first. */
export function ConversationList({ open, search, onSearch, onRename, onDelete, onChosen }: Props) {
  const changed = useValue(conversationsChanged);
  const { data: rows, error } = useFetched(`${changed} ${search}`, (signal) =>
    data(client.GET("/api/conversations", { params: { query: { search } }, signal })),
  );
  return (
    <div className="conversation-list">
      <a className="button" href={href(["chat"])} onClick={onChosen}>
        New conversation
      </a>
      <input
        type="search"
        aria-label="Search in conversations"
        placeholder="Search"
        value={search}
        onChange={(event) => onSearch(event.target.value)}
      />
      {error && <p className="note bad">{error}</p>}
      {rows?.length === 0 && <p className="note none">{search ? "Nothing found." : "No conversations yet."}</p>}
      <ul>
        {rows?.map((row) => (
          <li key={row.id} className={row.id === open ? "open" : undefined}>
            <a
              href={href(["chat"], { conversation: row.id })}
              aria-current={row.id === open ? "true" : undefined}
              onClick={onChosen}
            >
              <span className="conversation-title">{titleOf(row)}</span>
              <span className="note">{row.excerpt ? `… ${row.excerpt} …` : facts(row)}</span>
            </a>
            {row.id === open && (
              <div className="row">
                <Button look="quiet" small onClick={() => onRename(row)}>
                  Rename
                </Button>
                <Button look="quiet" small onClick={() => onDelete(row)}>
                  Delete
                </Button>
              </div>
            )}
          </li>
        ))}
      </ul>
    </div>
  );
}

function facts({ changed, kept }: ConversationRow): string {
  return kept ? moment(changed) : `${moment(changed)} · not kept`;
}
