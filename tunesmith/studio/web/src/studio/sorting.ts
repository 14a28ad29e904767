// Tables that are sorted by a column. The address has the column's key, with a minus for the largest first.

export interface Sort {
  key: string;
  down: boolean;
}

export function sortOf(text: string): Sort {
  return { key: text.replace(/^-/, ""), down: text.startsWith("-") };
}

interface Sorted<Row> {
  key: string;
  /** Rows without a value go last. */
  value: (row: Row) => string | number | null | undefined;
}

export function sortedBy<Row>(rows: Row[], columns: Sorted<Row>[], { key, down }: Sort): Row[] {
  const value = (columns.find((column) => column.key === key) ?? columns[0]!).value;
  return [...rows].sort((a, b) => {
    const [first, second] = [value(a) ?? null, value(b) ?? null];
    if (first === null || second === null) return Number(first === null) - Number(second === null);
    const order = first < second ? -1 : first > second ? 1 : 0;
    return down ? -order : order;
  });
}
