"""A Transformer with readable source.

Importing this package registers it with the Auto classes of transformers, so that `from_pretrained`
loads its models; register your own model the same way.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import (
    TransformerForCausalLM,
    TransformerForMaskedLM,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
)
from llmkit.models.transformer.model import TransformerModel
from llmkit.models.transformer.seq2seq import TransformerForSeq2SeqLM

AutoConfig.register(TransformerConfig.model_type, TransformerConfig)
AutoModel.register(TransformerConfig, TransformerModel)
AutoModelForCausalLM.register(TransformerConfig, TransformerForCausalLM)
AutoModelForMaskedLM.register(TransformerConfig, TransformerForMaskedLM)
AutoModelForSeq2SeqLM.register(TransformerConfig, TransformerForSeq2SeqLM)
AutoModelForSequenceClassification.register(TransformerConfig, TransformerForSequenceClassification)
AutoModelForTokenClassification.register(TransformerConfig, TransformerForTokenClassification)
