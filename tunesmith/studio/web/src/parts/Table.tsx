import type { Key, ReactNode } from "react";

import { Scroller } from "./Scroller";

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ReactNode;
  /** Numbers are aligned at their right end. */
  number?: boolean;
}

interface Props<Row> {
  /** For a screen reader: what the table shows. */
  label: string;
  columns: Column<Row>[];
  rows: Row[];
  rowKey: (row: Row) => Key;
}

export function Table<Row>({ label, columns, rows, rowKey }: Props<Row>) {
  const alignment = (column: Column<Row>) => (column.number ? "number" : undefined);
  return (
    <Scroller label={label}>
      <table className="table" aria-label={label}>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column.title} scope="col" className={alignment(column)}>
                {column.title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={rowKey(row)}>
              {columns.map((column) => (
                <td key={column.title} className={alignment(column)}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </Scroller>
  );
}
