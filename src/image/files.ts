import { CasemateError, isSystemError } from '../errors.js';

/** Runs `body`; a system call of it that fails comes out as the error of this file. */
export async function wrapFileError<T>(step: string, path: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw new CasemateError('ERR_CASEMATE_FILE', `${step}: ${cause.path ?? path}: ${cause.message}`, {
      step,
      remedy: 'Check the path, its permissions, and the space that is left.',
      cause,
    });
  }
}
