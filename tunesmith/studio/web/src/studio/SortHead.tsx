import { setQuery } from "./router";
import type { Sort } from "./sorting";

interface Props {
  columns: { key: string; title: string; number?: boolean }[];
  sort: Sort;
}

/** The heads of columns, each of which sorts the table. */
export function SortHead({ columns, sort }: Props) {
  return columns.map(({ key, title, number }) => {
    const isSorted = sort.key === key;
    return (
      <th
        key={key}
        scope="col"
        className={number ? "number" : undefined}
        aria-sort={isSorted ? (sort.down ? "descending" : "ascending") : undefined}
      >
        <button
          type="button"
          className="sort"
          onClick={() => setQuery({ sort: isSorted && !sort.down ? `-${key}` : key })}
        >
          {title}
          <span aria-hidden="true">{isSorted ? (sort.down ? " ↓" : " ↑") : ""}</span>
        </button>
      </th>
    );
  });
}
